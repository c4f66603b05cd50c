"""Side by side with peers; nothing else imports this."""
