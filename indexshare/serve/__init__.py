"""An HTTP server around the engine, for the clients that people have: OpenAI's and Anthropic's interfaces."""
