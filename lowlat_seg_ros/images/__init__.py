"""Image messages as RGB arrays, and their ledger, whatever library made the messages."""
