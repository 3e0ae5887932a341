"""Trying a model: answers, chats, held-out scores."""
