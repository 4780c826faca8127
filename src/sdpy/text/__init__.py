"""From the text of a prompt to what the UNet is conditioned on."""
