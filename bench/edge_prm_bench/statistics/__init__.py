"""Agreement with a reference, and quality on labelled data."""
