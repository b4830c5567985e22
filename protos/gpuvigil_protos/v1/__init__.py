"""Generated from stream.proto; do not edit."""
