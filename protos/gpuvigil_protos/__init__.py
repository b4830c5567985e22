"""The wire: messages, metric catalogue, fault classes, codec, config loading."""
