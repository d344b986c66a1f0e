"""Requests whose right answer is known, and chats about them, in English, Japanese and Chinese."""
