"""What the collector shows to other systems."""
