"""``python warm_cache.py CONFIG`` puts the config's backbone into the caches of whoever runs it.

The weights go into Keras's cache, the converted model into imgindex's: workers then start without a download,
and OpenVINO's without Keras and TensorFlow.
"""

import sys
from dataclasses import asdict

from imgindex import load_config
from imgindex.models.engines.openvino_conversion import converted_model

backbone = load_config(sys.argv[1]).backbone
converted_model(**asdict(backbone))
