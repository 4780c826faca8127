"""Fetching weights from a model hub.

`catalog` says what there is by name, `client` talks to the hub, `plan` chooses the files and
checks the folder, `fetch` brings the bytes. Nothing here needs torch.
"""
