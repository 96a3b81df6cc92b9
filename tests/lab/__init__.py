"""Several hosts on one machine, for tests that need real ones: namespaces, addresses and an sshd of their own. As root, on Linux."""
