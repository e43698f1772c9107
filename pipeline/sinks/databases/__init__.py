"""Vector databases as targets: a file a database, over what is the same for all."""
