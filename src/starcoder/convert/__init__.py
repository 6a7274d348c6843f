"""Which type each tensor gets, its rows in that type, and what memory a model takes."""
