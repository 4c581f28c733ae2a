"""RunPod's hub looks for a file of this name. The handler itself is in the package, where the image starts it."""

from lora_trainer.handler import main

if __name__ == "__main__":
    main()
