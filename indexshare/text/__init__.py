"""Text and tokens: tokenizers, and what Python files import and define. No torch."""
