"""Makes files for other programs out of a finished adapter: a merged model in bf16, or the adapter as GGUF."""
