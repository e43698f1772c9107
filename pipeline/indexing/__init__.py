"""From features to vectors to shards."""
