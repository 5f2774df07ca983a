"""Ways past the guard that were tried, as runnable cases: ``pytest tests/attacks -v`` reads as a list of them."""
