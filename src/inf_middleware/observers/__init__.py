"""Those who watch calls: adapters of the `Observer` port, each its one third-party package."""
