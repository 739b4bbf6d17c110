"""What to train on: how much a source's labels are trusted and worth, by a cheap proxy of alignment."""
