"""Converting and quantizing: which type each tensor gets, and its rows in that type."""
