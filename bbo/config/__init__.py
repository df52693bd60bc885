"""Campaign files to objects, and objects back to what a ledger records of them."""
