"""What all the systems under measurement have in common."""

from . import host, http_probe


class Sample:
    """One start that was measured."""

    def __init__(self, ms, first_byte_ms, later_ms, host_mib, phases=None):
        self.ms = ms
        self.first_byte_ms = first_byte_ms
        self.later_ms = later_ms
        self.host_mib = host_mib
        self.phases = phases or {}


class System:
    """A way to get a server from nothing to its first answer.

    A subclass sets `name`, `note` (where it runs and who asks it), and implements prepare() (whatever comes before the
    first measured start), start() (begins one; returns the function that waits for the Answer), processes() (of the one
    that runs), stop() and close().
    """

    name = ""
    note = ""
    ready_seconds = 120
    checks_body = True  # the model server answers
    asked_for_by_request = False  # the first request is what starts it

    def __init__(self, bench, heap_mib):
        self.bench = bench
        self.heap_mib = heap_mib
        self.folder = bench.folder / f"{self.name}-{heap_mib}"
        self.folder.mkdir()

    def prepare(self):
        pass

    def start(self):
        raise NotImplementedError

    def processes(self):
        raise NotImplementedError

    def phases(self):
        return {}

    def stop(self):
        raise NotImplementedError

    def close(self):
        pass

    def image(self):
        """The file or folder that a start reads a memory from, if it does."""
        return None

    def settle(self):
        """Waits until all is there that the row promises to have been made ahead."""

    def sample(self):
        """One start, measured, checked and stopped again."""
        try:
            self.settle()
            if self.bench.cold_cache:
                host.drop_page_cache()
            elif image := self.image():
                # All systems' images together may be more than the page cache holds.
                host.read_into_page_cache(image)
            begun, answer = self.start()
            try:
                if self.checks_body:
                    http_probe.check_body(self.bench.path, answer.body, self.heap_mib, self.bench.checksums)
                later = http_probe.more(answer.connection, self.bench.path, self.bench.later_requests)
            finally:
                answer.connection.close()
            memory = host.pss_mib(self.processes())
            return Sample((answer.at - begun) * 1000, answer.first_byte_ms, later, memory, self.phases())
        finally:
            self.stop()
            host.reap_orphans()
