"""Jobs: what comes in over the service, trained by processes of their own."""
