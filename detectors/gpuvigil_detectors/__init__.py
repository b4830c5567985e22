"""Pure detectors over Windows, and the decision that follows them."""
