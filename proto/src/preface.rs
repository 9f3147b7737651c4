//! What is said before the brains talk: hello, authentication, start. Native only.
