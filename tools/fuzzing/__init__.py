"""The fuzzer's parts: what a case may say, how cases are made, and how one is tried."""
