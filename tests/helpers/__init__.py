"""What several test files need: models, files, folders and servers of the tests' own."""
