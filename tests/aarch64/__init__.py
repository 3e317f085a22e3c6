"""The native library for aarch64, its ops called under qemu."""
