"""Events for other programs, in the form of https://www.standardwebhooks.com: signed, and sent to their endpoints."""
