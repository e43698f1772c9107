"""The command with the quick engine `served`. It loads no Beam, unlike `quick_command`."""

from fake_engine import factory_of

from imgindex import cli
from imgindex.models.engines.registry import register

if __name__ == "__main__":
    register("served", factory_of())
    cli.run()
