"""How whisper-pocket is made: synthetic corpus, tokenizer, training, alignment heads, evaluation."""
