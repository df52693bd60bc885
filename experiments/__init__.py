"""Problems, methods and benchmarks: what the framework is shown and measured on."""
