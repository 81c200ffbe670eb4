"""For gunicorn: four workers that are ready one after the other, the last one late. They wait for the restore where they would serve."""

import os
import threading
import time

import thaw

bind, workers, timeout, graceful_timeout = "0.0.0.0:8000", 4, 2, 1


def be_ready_late(age):
    time.sleep(4)
    print("ready", age, flush=True)
    thaw.ready()


def post_worker_init(worker):
    if worker.age == workers:  # it goes on serving meanwhile, or gunicorn would rightly kill it
        threading.Thread(target=be_ready_late, args=(worker.age,), daemon=True).start()
        return
    print("ready", worker.age, flush=True)
    thaw.ready()
    restored = thaw.wait_for_restore()  # longer than gunicorn's time-out
    print("worker", worker.age, "waited:", restored, flush=True)


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [f'{{"pid": {os.getpid()}, "restored": {str(thaw.restored()).lower()}}}'.encode()]
