"""Tables in, text out; and the one place that opens the test split."""
