def main(names, **options):
    return 0
