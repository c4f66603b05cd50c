"""Granite Speech: a conformer encoder, a Q-Former projector and a Granite language model."""
