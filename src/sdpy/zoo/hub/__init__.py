"""Downloading weights from a model hub.

`catalog` names models, `client` talks to the hub, `plan` chooses the files of a repository,
`fetch` downloads them into the data folder. Nothing here imports torch.
"""
