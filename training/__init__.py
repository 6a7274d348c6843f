"""How the model in the package is made: `python -m training`. See docs/model_card.md."""
