//! The native codec: length, kind, channel, payload.
