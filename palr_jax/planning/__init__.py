"""`palr plan`: compiles a config for chips that are absent, and says what it needs."""
