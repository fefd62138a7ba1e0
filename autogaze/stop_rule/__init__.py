"""The stop rule: calibrating the predicted loss, and checking that it keeps its promise."""
