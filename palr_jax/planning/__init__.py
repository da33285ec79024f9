"""`palr plan`: compiles a config for chips that are absent, and reports what it needs."""
