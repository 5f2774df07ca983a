"""The embedded demo: a tiny trained pipeline and classifier. No NSFW model."""
