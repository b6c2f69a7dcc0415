"""Places where segments lie: each an implementation of one small contract."""
