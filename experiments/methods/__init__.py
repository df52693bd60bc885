"""Methods to hold the framework's own against, one file a method; all are paid for by the same campaign."""
