"""FastConformer: front-end and encoder from NeMo or transformers checkpoints to graphs, whatever the decoder."""
