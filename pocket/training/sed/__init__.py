"""How sed-pocket is made: sounds by numpy, training, evaluation."""
