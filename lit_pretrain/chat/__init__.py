"""Chat: messages, templates, and conversations as token ids with what of them is learned."""
