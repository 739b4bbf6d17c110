"""Tables that stages exchange."""
