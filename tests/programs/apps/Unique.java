import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.security.SecureRandom;
import java.util.Random;

/** Draws random numbers: from generators as they were at the dump, and seeded anew by GET /reseed. `java Unique.java` runs it. */
public class Unique {
  static Random plain = new Random();
  static String drawn = "{}";

  public static void main(String[] arguments) throws Exception {
    SecureRandom drbg = SecureRandom.getInstance("DRBG"), sha1 = SecureRandom.getInstance("SHA1PRNG");
    SecureRandom kernel = SecureRandom.getInstance("NativePRNG");
    drbg.nextLong();
    sha1.nextLong();
    kernel.nextLong();
    HttpServer server = HttpServer.create(new InetSocketAddress("0.0.0.0", 8000), 64);
    server.createContext("/", exchange -> {
      if (exchange.getRequestURI().getPath().equals("/reseed")) {
        String kept = numbers(plain, drbg, sha1);
        plain = new Random(kernel.nextLong());
        drbg.setSeed(kernel.generateSeed(32));
        sha1.setSeed(kernel.generateSeed(32));
        String fresh = numbers(plain, drbg, sha1) + ", \"kernel\": \"" + kernel.nextLong() + "\"";
        drawn = "{\"kept\": {" + kept + "}, \"fresh\": {" + fresh + "}}";
      }
      byte[] answer = drawn.getBytes();
      exchange.sendResponseHeaders(200, answer.length);
      exchange.getResponseBody().write(answer);
      exchange.close();
    });
    server.start();
  }

  static String numbers(Random plain, Random drbg, Random sha1) {
    return "\"random\": \"" + plain.nextLong() + "\", \"drbg\": \"" + drbg.nextLong() + "\", \"sha1\": \"" + sha1.nextLong() + "\"";
  }
}
