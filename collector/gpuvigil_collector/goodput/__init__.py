"""What a job's time went into, what each failure cost, and how often it should save."""
