r"""Which answers the verifier accepts and refuses (eq. 11, section 3)."""

import json
import re
from pathlib import Path

import pytest

from minisoft.verifier.compare import only_as_text
from minisoft.verifier.process import Verifier

# Each line: a gold, "::", and after it answers separated by ";;".
RIGHT = r"""
18 :: 18. ;; 18.0 ;; +18 ;; \$18 ;; 18 dollars ;; 18\text{ eggs} ;; n = 18 ;; \text{18}
18 :: \mathbf{18} ;; (18) ;; {18} ;; 36/2 ;; \frac{36}{2} ;; 18/1 ;; 18e0
5 :: 5\text{ cm} ;; 5 cm ;; 5cm ;; 5kg ;; 5\,\text{cm}
-5 :: −5
1,450,000 :: 1450000 ;; 1{,}450{,}000
1450000 :: 1,\!450,\!000 ;; 1\,450\,000
60 :: 60 miles per hour ;; 60 \text{ km/h} ;; 60 miles/hour ;; 60 \text{ L}
120 :: 120cm ;; 120 cm^2 ;; 120 cm² ;; 120\text{ square units} ;; 120\,\text{m} ;; 120\text{ s}
120 :: \boldsymbol{120} ;; 120.
14.0 :: 14
3.5 :: \frac{7}{2}
\frac{3}{4} :: 3/4 ;; 0.75 ;; \dfrac{6}{8} ;; \frac34 ;; x = \frac{3}{4} ;; 75\%
\frac{5}{8} :: 62.5\% ;; \frac58 ;; \left(\frac{5}{8}\right) ;; P = \frac{5}{8} ;; 0.6250
\frac{5}{8} :: \frac{10}{16}
-\frac{1}{2} :: \frac{-1}{2} ;; -0.5
\frac{14}{3} :: 4\frac{2}{3}
\frac{1}{10} :: .1
(3,\frac{\pi}{2}) :: \left( 3, \frac{\pi}{2} \right) ;; (3, \pi/2) ;; (3, 0.5\pi)
(2,-3) :: (x,y) = (2,-3) ;; (x, y)=(2,-3) ;; (2.0, -3) ;; x = 2, y = -3 ;; a = 2 \text{ and } b = -3
p - q :: -q + p ;; p-q
\text{Evelyn} :: \textbf{Evelyn} ;; evelyn
\text{east} :: \text{East}
\text{(C)} :: C ;; \text{C}
C :: (C)
\sqrt{51} :: \sqrt{51} ;; sqrt(51) ;; 51^{1/2} ;; √51
3\sqrt{13} :: \sqrt{117} ;; 3 \cdot \sqrt{13} ;; 3*sqrt(13) ;; 3\sqrt13
11\sqrt2 :: 11\sqrt{2}
\frac{\sqrt{3}}{3} :: \frac{1}{\sqrt{3}}
[0,1) :: [0, 1) ;; \left[0,1\right) ;; x \in [0,1) ;; 0 \le x < 1 ;; 1 > t \ge 0
[0,1) :: \{x \mid 0 \le x < 1\}
x \in [-2,7] :: [-2,7] ;; x \in [-2, 7.0]
(-\infty,-2)\cup(3,\infty) :: (3,\infty) \cup (-\infty, -2) ;; (-∞,-2)∪(3,∞)
(-\infty,-2)\cup(3,\infty) :: x \in (-\infty,-2)\cup(3,+\infty)
(-\infty,-2)\cup(3,\infty) :: \left(-\infty, -2\right) \cup \left(3, \infty\right)
\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix} :: \begin{pmatrix} -\frac13 \\ \frac23 \end{pmatrix}
\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix} :: \begin{bmatrix} -\frac13 \\ \frac23 \end{bmatrix}
\begin{pmatrix} \sqrt{12} & x+1 \end{pmatrix} :: \begin{pmatrix} 2\sqrt{3} & 1+x \end{pmatrix}
\begin{pmatrix}1 & 2 \\ 3 & 4\end{pmatrix} :: \left(\begin{matrix}1 & 2.0 \\3 & 4\end{matrix}\right)
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} :: \begin{pmatrix}1&2\\3&4\end{pmatrix}
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} :: \begin{pmatrix} 1 & 2 \\ 3 & 4 \\ \end{pmatrix}
x=5 :: 5 ;; x = 5
y = 2x + 3 :: 2x+3 ;; y = 3 + 2x ;; y - 2x = 3
2x - y + 3z + 8 = 0 :: y = 2x + 3z + 8
2+3i :: 3i+2
6 - 5i :: -5i + 6
90^\circ :: 90 ;; 90 degrees
90 :: 90°
\$32,\!348 :: 32348 ;; 32,348 dollars
10\% :: 10 ;; 10 percent ;; 0.1 ;; \frac{1}{10} ;; 10\text{ percent}
12.5\% :: 0.125 ;; \frac{1}{8} ;; 12.50\%
2516_8 :: 2516_{8} ;; 2516
1,-2 :: -2, 1 ;; \{-2, 1\} ;; x = 1 \text{ or } x = -2 ;; 1 and -2 ;; x=1,-2 ;; x_1 = 1, x_2 = -2
1,-2 :: x_{1} = -2 \text{ and } x_{2} = 1
1 \pm \sqrt{19} :: 1\pm\sqrt{19} ;; 1+\sqrt{19}, 1-\sqrt{19} ;; 1 - √19, 1 + √19 ;; x = 1 ± √19
\pm 3 :: 3, -3 ;; x = 3 \text{ or } x = -3 ;; \{-3, 3\}
3 \pm 2\sqrt{2} :: 3 \pm \sqrt{8}
x \le -2 :: x ≤ -2 ;; x \leq -2
\frac{\pi}{4} :: π/4 ;; 0.25π
\infty :: ∞ ;; +\infty
x^2+2x+1 :: x² + 2x + 1 ;; (x+1)²
(x^2+1)^2 :: (1+x^2)^2 ;; x^4+2x^2+1
x^{25}-2^{49} :: -2^{49} + x^{25}
2, 3, \text{ and } 4 :: 2, 3, 4
$2n$ :: 2n ;; 2 \cdot n
$\frac{1}{2 n+2}$ :: \frac{1}{2(n+1)}
$\frac{n(n+1)}{2}$ :: n(n+1)/2
$\binom{2n}{n}$ :: \frac{(2n)!}{n! n!}
$90^{\circ}$,$60^{\circ}$ :: 60, 90
$f(x)=2 x$ :: 2x ;; f(x) = 2x
$2^{1009}$ :: 2^{1009}
$2^{10}$ :: 1024
$(1,8,19), (2,7,13)$ :: (2,7,13),(1,8,19)
$\left\lfloor\log _{2} n\right\rfloor+1$ :: 1+\lfloor \log_2 n \rfloor
$k \geqslant 2$ :: k \ge 2
15\mbox{ cm}^2 :: 15 ;; 15 square centimeters
5.4 \text{ cents} :: 5.4
20\text{ miles} :: 20 miles
12\sqrt{13}\text{ feet} :: 12\sqrt{13}
2\sqrt{3} :: \sqrt{12} ;; \frac{6}{\sqrt{3}} ;; 12^{1/2} ;; 2*sqrt(3) ;; 2\cdot 3^{1/2}
x^5 - x^4 + 1 :: 1 - x^4 + x^5
(a+5)(b+2) :: (b+2)(a+5)
x^{11}+3 :: x^11 + 3
25\pi :: 25\pi\text{ cm}^2
\cos^2\alpha :: 1-\sin^2\alpha
\text{A, D, F} :: A, F, D
100(1+x)^{5} :: 100 \times (1+x)^5
56 :: 56\text{ mph} ;; 56\,\text{kg} ;; 56\;\mathrm{ft}^2 ;; 56 m/s ;; 56 km/h ;; 56km/h ;; 56 L
56 :: 56\text{ dollars per hour} ;; \$56 per hour ;; x = 56\text{ cm} ;; **56 cm** ;; **56** ;; $56$
56 :: \[56\] ;; **$56$** ;; $**56**$ ;; 56\text{ s} ;; 5.6e1 ;; 5.6\times 10^1 ;; 56\text{ degrees}
56 :: \textit{56} ;; 112/2 ;; 56.00 ;; \mathrm{56}
\frac{x}{2} :: x½ ;; ½x ;; 0.5x
\sqrt{x} :: x^{1/2} ;; x^\frac12 ;; x^½ ;; x^{\frac{1}{2}}
\{1,2\} :: 1;2 ;; \{1;2\} ;; \{2,1\}
x>2 :: (2,\infty) ;; 2<x ;; x>2.0 ;; x \gt 2 ;; (2,∞)
1<x<2 :: 2>x>1 ;; (1,2) ;; x\in(1,2) ;; 1.0<x<2
x=2, x=3 :: 2, 3 ;; x=3, x=2 ;; x=2,3
x=2, y=3 :: y=3, x=2 ;; x = 2, y = 3
\frac{3}{2} :: 1\frac{1}{2} ;; 1½ ;; 1 1/2 ;; 1.5 ;; 150\% ;; {3\over2}
2\frac{1}{2} :: 2.5 ;; 5/2 ;; 2½
-2\frac12 :: -5/2 ;; -2.5 ;; -2½
x=\sqrt{2} :: \sqrt2 ;; x=\sqrt{2}
\log_2 (3x) :: \log_2 3x ;; \log_{2}(3x)
\log_2 x :: \log_2(x) ;; \log_{2}{x} ;; \log_{2} x
\log_3 10 + 1 :: 1+\log_3(10) ;; \log_{3}{10}+1
\begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix} :: \left[\begin{array}{cc}1&0\\0&1\\\end{array}\right]
\begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix} :: \begin{array}{cc} 1 & 0 \\ 0 & 1 \end{array}
\begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix} :: \left[ \begin{array}{rr}1&0\\0&1\end{array} \right]
10^{6} :: 1000000 ;; 1,000,000 ;; 1e6
6.02\times 10^{23} :: 6.02e23 ;; 6.02 \cdot 10^{23} ;; 60.2\times 10^{22}
5\text{ mph} :: 5 miles per hour ;; 5 miles/hour ;; 5\text{ mi/h} ;; 5
3\text{ m/s}^2 :: 3 \mathrm{m/s^2} ;; 3\,\text{m}/\text{s}^2
5\text{ students} :: 5 students ;; 5
\text{Yes} :: YES ;; **yes** ;; yes. ;; \mathrm{Yes} ;; yes
\text{not enough information} :: Not enough information
70\% :: 70 percent ;; 0.7 ;; 70\,\% ;; 7/10
0.7 :: 70\%
3,4,5,\ldots :: 3,4,5,... ;; 3, 4, 5, \dots
2x :: **2x** ;; $2x$ ;; 2*x
12^\circ :: 12\text{ deg} ;; 12 degrees ;; 12°
1500 :: 1.5 \times 10^3
4 :: \frac{8}{2}
12\text{ inches} :: 12\text{ in}
\begin{pmatrix} 1 & 2 \end{pmatrix} :: \begin{array}{cc} 1 & 2 \end{array}
0 \le x < 1 :: [0,1) ;; x \in [0,1)
7 :: 7\text{.} ;; 7\text{ units.} ;; seven ;; \text{Seven} ;; seven apples ;; "7" ;; \fbox{7}
7 :: \underline{7}
\text{No} :: no ;; NO ;; \text{no}
No :: NO
y \in (0,1) :: (0,1)
x \le 3 :: x <= 3
x \ge 3 :: x >= 3
\log_2 3 :: \log_2(3)
50 :: 50\% ;; 50 percent ;; 50 pct ;; 50 percentage ;; \text{50}
12.5 :: 12.5\% ;; 12.5 percent
(-\infty,4] :: x \le 4 ;; 4 \ge x ;; \{ x : x \leqslant 4 \}
\{x | x > 2\} :: (2,\infty) ;; x>2
(-\infty,1)\cup[3,\infty) :: x<1 or x \ge 3 ;; x < 1 \lor 3 \le x
(-\infty,1)\cup[3,\infty) :: x \in (-\infty,1) \text{ or } [3,\infty) ;; \mathbb{R} \setminus [1,3)
(-\infty,1)\cup[3,\infty) :: [\sqrt{9},\infty) \cup (-\infty,1)
(-\infty,0)\cup(0,\infty) :: \{x \in \mathbb{R} \mid x \ne 0\} ;; x \in \mathbb{R}, x \neq 0
(-\infty,2)\cup(2,\infty) :: x \neq 2 ;; \mathbb{R}\setminus\{2\} ;; ℝ ∖ \{2\} ;; \mathbb R - \{2\}
\mathbb{R}\setminus\{1,2\} :: (-\infty,1)\cup(1,2)\cup(2,\infty)
(0,1)\cup(1,\infty) :: x>0, x \ne 1 ;; x > 0 \text{ and } x \ne 1
\mathbb{R} :: (-\infty,\infty) ;; \text{all real numbers} ;; x \in \mathbb{R} ;; All reals
\emptyset :: \varnothing ;; \{\} ;; \text{no solution} ;; No real solutions ;; ∅
\frac{2}{3} :: 2 \div 3 ;; 2 \over 3 ;; 0.\overline{6} ;; 0.\dot{6} ;; 0.6\overline{6} ;; 2 ÷ 3
\frac{50}{9} :: 5.\overline{5} ;; 5.\bar{5}
\frac{\pi}{6}+\frac{1}{3} :: \pi \div 6 + 1 \div 3
\text{two} :: 2 ;; Two
40 :: 40 sq ft ;; 40 sq. ft ;; 40\text{ sq. in.} ;; 40 USD
\cos x :: \sin(90^\circ - x)
\sin 60^\circ :: \frac{\sqrt{3}}{2} ;; \sin(\pi/3)
3+2i :: i(2-3i) ;; 3+2i
\frac{5}{4} :: {5 \over 4}
\arctan 2 :: \tan^{-1} 2
a_n = 2n - 1 :: 2n-1 ;; a_n = 2(n-1)+1
"""
WRONG = r"""
18 :: 19 ;; 18x ;; 18i ;; 18\pi ;; 1 8 ;; 18 million ;; 18\text{ thousand} ;; 18 or 19
18 :: 18\text{ or }19 ;; 18, 19 ;; 18 19 ;; 17 + 1 ;; 3 \times 6 ;; \sqrt{324} ;; 018.5 ;; 18!
18 :: 18^{1} ;; 18 \approx 18.2 ;; x < 18 ;; 18 = 18 ;; 17+1 = 18 ;; x = y = 18 ;; 18xy
18 :: \text{not }18 ;; 18\text{ is wrong} ;; -18 ;; 18_8 ;; 0.18 ;; 1.8 ;; 18 + 0x ;; 17.9999999999
18 :: 18.00000000001 ;; \color{white}{18} ;; \hphantom{18} ;; 17\phantom{18} ;; \{17, 18\}
18 :: [18, 19] ;; 1e999999999 ;; \int_0^{18} dx ;; \lfloor 18.5 \rfloor ;; 18 plus 1 ;; 18 \pm 1
18 :: 18\text{x} ;; 18 = 18.0 ;; 17 = 18 ;; 18 \Rightarrow 18 ;; 16, 17, 18 ;; 18, 19, 20 ;; 18;19
18 :: 9 + 9\text{ eggs} ;; 18\text{ (or 19)} ;; 18 (19) ;; \phantom{1}18 ;; \vphantom{18}
18 :: 19\rlap{18} ;; \cancel{19}18 ;; 10010_2 ;; 18_{16} ;; 18.0000001 ;; 17.9999995 ;; |-18|
18 :: 18 - 0 ;; 18 \ne 19 ;; 18 ± 0 ;; 18\cup 19 ;; 18k ;; 18x\text{ m} ;; 18 maybe ;; 18 hopefully
7 :: \begin{pmatrix} 7 \end{pmatrix} ;; 111_2 ;; \pm 7 ;; 6+1=7 ;; 7\text{ dozen} ;; 7% of 3 ;; 7^1
7 :: 7 8 ;; eight ;; seventy ;; seven or eight ;; seven million ;; seven hundred ;; \text{seven}1
7 :: seven halves
1450 :: 1,45,0 ;; 1, 450
50 :: 0.5 ;; 5000\% ;; 0.5\% ;; \frac{1}{2}
50\% :: 50 cm
0.5 :: 0.5\%
0.25 :: 0.25\% ;; 25 ;; 0.2500001 ;; \frac{1}{4}, \frac{1}{2}
\frac{5}{8} :: 0.62 ;; 0.63 ;; 0.6250001 ;; 5:8 ;; 5,8 ;; 62.5 ;; \frac{1}{2}=\frac{5}{8}
\frac{5}{8} :: \frac{5}{8}\text{ or }\frac{3}{8} ;; \frac{5}{8}\%
\frac{1}{3} :: 0.33 ;; 0.333333 ;; 0.3333333333333333 ;; \frac{1}{3}, \frac{2}{3}
\frac{3}{4} :: \frac{4}{3} ;; 3:4:5
\pi :: 3.14 ;; 3.141592653589793 ;; \frac{22}{7} ;; 3.14\text{ cm} ;; \pi^\circ\% ;; 180^\circ
\sqrt{51} :: 7.141428 ;; \sqrt{51.0000000001} ;; \sqrt{51}, \sqrt{52} ;; 51 ;; \sqrt{51}x
(1,2) :: (2,1) ;; [1,2] ;; \{1,2\} ;; (1,2,3) ;; (1,2),(2,1) ;; (1,2] ;; (1;2) ;; [1;2] ;; \{1;2\}
(1,2) :: (1;2;3)
[0,1) :: [0,1] ;; (0,1) ;; 0,1 ;; 0 \le x \le 1 ;; 0 < x < 1
1,-2 :: (1,-2) ;; 1 ;; 1,-2,3 ;; 1,2 ;; x_1 = 1, y_1 = -2 ;; x_1 = 1 ;; x_1 = 1, x_2 = 2
1,1 :: 1
1,2,2 :: 1,1,2
1 \pm \sqrt{19} :: 1 + \sqrt{19} ;; 1+\sqrt{19}, 1+\sqrt{19} ;; 1, \sqrt{19} ;; -1 ± √19
1 \pm \sqrt{19} :: 1 ± √19 ± 1
3 :: 3 \pm 0 ;; \pm 3
x=5 :: y=5 ;; x=6 ;; x>5 ;; x = y = 5 ;; x = 2 + 3 ;; 2 + 3 ;; x = 5x
y = 2x + 3 :: y = 2x - 3 ;; x = 2y + 3
2x - y + 3z + 8 = 0 :: 0 = 0 ;; 2x - y + 3z + 8
p - q :: q - p ;; r - q
2+3i :: 3+2i ;; 2-3i
$2n$ :: 2m ;; 2 ;; 2n, 3n ;; 2n\text{ maybe}
6m :: 6s ;; 6
\text{Evelyn} :: \text{Carla} ;; \text{Evelyn or Carla} ;; nylevE
\text{CBAD} :: ABCD
\text{(C)} :: (D) ;; C, D ;; A B C D ;; ABCDE
2516_8 :: 2516_7 ;; 2517_8 ;; 2516 cm
\$5 :: 5\text{ cents} ;; 5 euros
5\text{ cm} :: 5\text{ cm}^2
15\mbox{ cm}^2 :: 15\text{ m}^2
90^\circ :: 90 radians
20\text{ miles} :: 20\text{ km}
10\% :: 0.1\% ;; 1 ;; 0.1 cm ;; 0.01 ;; 1000 ;; 10 cm ;; 0.10001
\begin{pmatrix} 1 \\ 2 \end{pmatrix} :: \begin{pmatrix} 1 & 2 \end{pmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} :: \begin{pmatrix} 2 \\ 1 \end{pmatrix} ;; (1,2) ;; 1,2
\begin{pmatrix} 1 \\ 2 \end{pmatrix} :: \begin{vmatrix} 1 \\ 2 \end{vmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} :: \begin{pmatrix} 1 \\ 1+1 \end{pmatrix}
\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix} :: \begin{pmatrix} 1 & 0 & 0 & 1 \end{pmatrix} ;; 1
\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix} :: I ;; \begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}, 2
x^2+1 :: x^2+1=0 ;; x^2 ;; y^2+1 ;; \boxed{x^2+1}\boxed{x} ;; x ;; x^2+1, x ;; (x^2+1)^1x
6.6\times 10^{-34} :: 0 ;; 6.6\times 10^{-35}
10^{-20}\pi :: 10^{-21}\pi
2^{1009} :: 2^{1008}
k \ge 2 :: k > 2 ;; k \ge 3
(-\infty,-2)\cup(3,\infty) :: (-\infty,-2),(3,\infty) ;; (-\infty,\infty)
(-\infty,-2)\cup(3,\infty) :: (-\infty,-2)\cap(3,\infty) ;; (-\infty,-2)
(-\infty,-2)\cup(3,\infty) :: (-\infty,-2]\cup(3,\infty) ;; (-\infty,-2)\cup(3,\infty)\cup(4,5)
(-\infty,-2)\cup(3,\infty) :: (-\infty,3)\cup(-2,\infty)
(2,-3) :: (y,x) = (-3,2) ;; (x,y) = (2,3) ;; (x,y) = 2 ;; x \in (2,-3)\cup(4,5) ;; 2-3
(2,-3) :: x = -3, y = 2 ;; x = 2 or y = -3 ;; y = 2, x = -3 ;; x = 2 ;; x = 2, x = -3
2\sqrt{3} :: 3.464 ;; 3.46410161513775 ;; \pm 2\sqrt{3} ;; 2\sqrt{3}, -2\sqrt{3}
2\sqrt{3} :: \sqrt{11}=2\sqrt{3} ;; 2\sqrt{3.0000001} ;; 2\sqrt3x
x+1 :: 1+x, 2+x ;; x+1 = 1+x ;; x+1.0000001 ;; x+1+C ;; 1+x\text{ (or 2+x)} ;; \phantom{y}+x+1
x+1 :: (or x+2) x+1
\infty :: -\infty ;; 2\infty ;; \infty+1 ;; (1,\infty)
e^{-50}\pi :: e^{-60}\pi
42 :: {4}{2}0
5 :: \frac{5}{0}
\frac{1}{2} :: \frac{1}{0}
f(4-x) :: f(4_\pi-x)
21.6 :: 21\.6
56 :: 56 m^2x ;; 5\left6 ;; 5\text{}6 ;; \(5\)\(6\) ;; $5$$6$ ;; 5**6** ;; 5__6__ ;; 5{}7
56 :: 56\text{M} ;; 56 M ;; 56 K ;; 56\text{K} ;; 56 over 2 ;; 56\text{ tenths} ;; 56 half
56 :: 56 ft 3 in ;; 56\text{ feet } 3\text{ inches} ;; 56 in 7 ;; 56 pm ;; 56\pmod{3} ;; 56 mod 7
56 :: 56 million dollars ;; \$56\text{ million} ;; 56 degrees below ;; 56 to 57 ;; 56 cm or 57 cm
56 :: 56e2 ;; 56\times 10^{1} ;; 55.99999 ;; 5 6 ;; 56-57 ;; 56–57 ;; \text{5}\text{6}0
56 :: 56\text{ minus 1} ;; 56\text{ times }2 ;; 56, etc ;; $56 or so ;; 56\text{C} ;; 56 log
56 :: 56 cos ;; 56 pi ;; 56 e ;; 56 in^4
60m^2 :: 60
5L :: 5
3mg :: 3
abc :: ABC ;; Abd
Ab :: ab
x :: X
\frac{x}{2} :: x^½ ;; 2x
x>2 :: x\ge 2 ;; x<2 ;; 2>x ;; y>2 ;; (2,\infty] ;; [2,\infty) ;; (-2,\infty) ;; x>-2 ;; x>2, x<5
x>2 :: x>2 or x<0 ;; 2 ;; x-2>0 ;; x=2
1<x<2 :: 1<y<2 ;; 1>x>2 ;; 2<x<1 ;; (2,1) ;; 1<x ;; x<2 ;; 1<x<2<3 ;; 1\le x<2
a<b :: b<a ;; a>b
x=2, x=3 :: x=2, y=3 ;; x=2
x=2, y=3 :: x=3, y=2 ;; 3, 2 ;; x=2 ;; y=2, x=3
\frac{3}{2} :: 1\cdot\frac12 ;; 11/2 ;; 1.50\% ;; 1\frac{-1}{2} ;; \frac{3}{-2} ;; \frac{-3}{2}
\frac{3}{2} :: 1 and 1/2
2\frac{1}{2} :: 21/2 ;; -2.5 ;; 2\times\frac{1}{2}
-2\frac12 :: -3/2 ;; -1.5 ;; 5/2
x=\sqrt{2} :: x^2=2 ;; x^2-2=0 ;; x=-\sqrt2 ;; y=\sqrt2 ;; x-\sqrt{2}=0
x=2i :: x-2i=0 ;; x^2=-4
\log_2 (3x) :: \log_2(3)x ;; \log_3 (2x)
(\log_2 3)^5 :: \log_2 3^5
\log_3 10 + 1 :: \log_3 11 ;; \log_3(10+1)
\begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix} :: \left|\begin{array}{cc} 1&0\\0&1 \end{array}\right|
\begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix} :: \begin{array}{cc} 1 & 0 \\ 0 & 2 \end{array}
\begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix} :: [1,0,0,1]
\begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix} :: \begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix}^2
x^{10} :: 10^x
10^{6} :: 10^{5} ;; 10 ;; 10^6x ;; 106
6.02\times 10^{23} :: 6.02\times 10^{-23} ;; 6.02+10^{23} ;; 6.02
5\text{ mph} :: 5 km/h ;; 5 miles ;; 5 hours/mile
3\text{ m/s}^2 :: 3\text{ m/s}
\text{Yes} :: y ;; No ;; yes? no
70\% :: 7\% ;; 0.7\% ;; 70 degrees ;; 70\text{ cents}
1 :: 100\%
0.7 :: 0.7\% ;; 7\% ;; 70
3,4,5,\ldots :: 3,4,5 ;; 5,4,3,\ldots ;; 3,4,\ldots
0.3 :: 0.3... ;; 0.\overline{3} ;; 0.3\ldots
2x :: x **3** ;; 2**x**  ;; 2**x
ab :: a,b ;; a and b ;; a+b
(2,3) :: 2,3 ;; 23 ;; (2,3,) ;; (2)(3) ;; (3,2)
12^\circ :: 12^2 ;; 12 rad ;; 12\text{ radians} ;; 12 percent
12 :: 12 rad ;; 12\text{ radians} ;; 12_{10}8 ;; 12_3
No :: yes
AB :: ab
y \in (0,1) :: x \in (0,1)
6 :: 6, ... ;; 6, 7, ... ;; 6\text{...}
3.14 :: 3.14...
S = (0, 2) :: S = (0, 2.5)
25 :: 2500\% ;; 0.25\% ;; 25\% or 26\% ;; 26 pct
12.5 :: 0.125\% ;; 0.125
(-\infty,1)\cup[3,\infty) :: x<1, x \ge 3 ;; x<1 and x \ge 3 ;; x \le 1 or x \ge 3 ;; 1 \le x < 3
(-\infty,1)\cup[3,\infty) :: x<1 or y \ge 3 ;; x<1 ;; x < 1 or 3 ;; \mathbb{R}
(-\infty,1)\cup[3,\infty) :: \mathbb{R} \setminus [1,3] ;; (-\infty,1) or 3
(-\infty,1)\cup[3,\infty) :: [-\infty,1) \cup [3,\infty] ;; \{1,3\}
(-\infty,2)\cup(2,\infty) :: x = 2 ;; \mathbb{R} ;; \mathbb{R}\setminus\{-2\} ;; x \ne 2, 3 ;; 2
(2,\infty) :: x \ge 2 ;; x < 2 ;; x ;; \infty ;; 2 ;; (2,\infty),(3,\infty) ;; x > 2, x > 3
(1,2),(3,4) :: (1,2)\cup(3,4) ;; 1<x<2 or 3<x<4
\mathbb{R} :: (0,\infty) ;; \mathbb{R}^2 ;; \text{all real numbers except }0 ;; R
\emptyset :: 0 ;; \{\emptyset\} ;; \{0\} ;; \text{solution} ;; (0,1)
\frac{2}{3} :: 0.6 ;; 0.66 ;; 0.\overline{66}7 ;; 6.\overline{6} ;; 3 \over 2 ;; 0.\overline{67}
\frac{2}{3} :: 0.6\overline{7}
40 :: 40 sq ft or so ;; 40 sq ;; 40 \div 1 + 1 ;; 40 \over 2
\cos x :: \sin(90-x) ;; \sin(80^\circ - x)
3+2i :: i(2+3i) ;; 2+3i ;; 3-2i
"""
# Right answers that are refused, as ambiguous or not worth a rule.
KNOWN_MISSES = r"""
7 :: 7m ;; 7 m
12\text{ inches} :: 12"
\ln 2 :: \log 2
e^{2x} :: \exp(2x)
4-i :: 4 - 1i
3^{30} :: 9^{15}
21 :: twenty-one
(-3,5) :: -3 < x < 5
3:4 :: \frac{3}{4}
4\begin{pmatrix} 1 \\ 2 \end{pmatrix} :: 4\begin{pmatrix}1\\2\\\end{pmatrix}
"""
# What follows the prefilled "\boxed{", the gold, the reward.
TEXTS = {  # reward: gold, "::", texts, as above
    100: r"""
18 :: 18} ;; 18} is my answer. \boxed{19} ;; \boxed{18}} ;; 18 eggs}
1,-2 :: \{1,-2\}}
1,450,000 :: \$1,450,000.00}
\frac{1}{2} :: \frac12}
0.5 :: 50\%}
\frac{14}{3} :: 4 2/3}
90 :: 90^\circ}
\text{Evelyn} :: Evelyn}
100, 200 :: 100,200}
""",
    0: r"""
18 :: } ;; 18 ;; {18}
""",
    10: r"""
18 :: \boxed{17}\boxed{18}} ;; \{18} ;; (18}
42 :: 41=42} ;; 42\text{ (or 43)}} ;; 1,2,3,4,5,42} ;; \phantom{42}} ;; 42.0000004} ;; 6\cdot 7}
42 :: blah @@ 41 @@ 42} ;; 9^{9^{9^9}}} ;; 999999999!}
9 :: 3\sqrt13}
\frac{1}{2} :: 0.4999999}
6.6\times 10^{-34} :: 10^{-20}}
5\text{ cm} :: 5\text{ km}}
(1,2) :: 1,2} ;; 1<x<2}
""",
}
SPECIAL = [
    ("18\x00}", "18", 0),
    ("__import__('os').system('touch PWNED')}", "42", 10),
    (" \n }", "18", 0),
    ("18\n}", "18", 100),
    ("(" * 50 + "42" + ")" * 50 + "}", "x^2+1", 10),
    ("+".join("x" * 50_000) + "}", "x^2+1", 10),
]


def pairs(table):
    lines = [line.split(" :: ") for line in table.strip().splitlines()]
    return [(gold, answer) for gold, answers in lines for answer in answers.split(" ;; ")]


@pytest.fixture(scope="module")
def verifier():
    with Verifier() as verifier:
        yield verifier


def test_texts(verifier):
    rows = [(text, gold, r) for r, table in TEXTS.items() for gold, text in pairs(table)]
    found = [(text, gold, verifier.score(text, gold)) for text, gold, _ in rows + SPECIAL]
    assert found == rows + SPECIAL


def scored(verifier, table):
    """reward -> the pairs of a table that have it."""
    rewards = verifier.score_all([(answer + "}", gold) for gold, answer in table])
    return {r: [pair for pair, x in zip(table, rewards) if x == r] for r in (0, 10, 100)}


def test_right_answers_are_accepted_and_wrong_ones_refused(verifier):
    right, wrong = scored(verifier, pairs(RIGHT)), scored(verifier, pairs(WRONG))
    assert right[10] == right[0] == wrong[100] == wrong[0] == []
    misses = scored(verifier, pairs(KNOWN_MISSES))
    assert len(misses[10]) / len([*pairs(RIGHT), *pairs(KNOWN_MISSES)]) <= 0.05


def test_a_gold_is_its_own_answer(verifier):
    golds = [gold for gold, _ in pairs(RIGHT) + pairs(WRONG)]
    assert [gold for gold in golds if verifier.score(gold + "}", gold) != 100] == []


def test_pairs_that_were_written_before_they_were_scored(verifier):
    lines = (Path(__file__).parent / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    right = [(row["gold"], row["answer"]) for row in rows if row["right"]]
    wrong = [(row["gold"], row["answer"]) for row in rows if not row["right"]]
    assert len(right) > 280 and len(wrong) > 350
    assert scored(verifier, wrong)[100] == []
    assert len(scored(verifier, right)[100]) / len(right) >= 0.95


def test_score_all_is_score_one_by_one(verifier):
    some = pairs(RIGHT)[::3] + pairs(WRONG)[::3]
    questions = [(answer + "}", gold) for gold, answer in some] * 2 + [("}", "1")] * 3
    with Verifier(workers=2) as team:
        assert team.score_all([]) == []
        assert team.score_all(questions) == [verifier.score(*question) for question in questions]
        assert team.counts.total() == len(questions)
        children = [judge.child.pid for judge in team.judges]
        assert len(set(children)) == 2
    assert not any(Path(f"/proc/{child}").exists() for child in children)


ONLY_AS_TEXT = [r"\angle A B C", r"(1, \mho(a))", "5 @ 6", "7" * 5000, "{" * 1500 + "}" * 1500]
NOT_ONLY = r"""18 ;; 1,450 ;; \frac{3}{4} ;; (1, -\infty) ;; (1,2),(3,4) ;; Tuesday ;; a $ b
x^2 + 1 ;; 5\text{ cm} ;; \begin{pmatrix} 1 \\ 2 \end{pmatrix} ;; \begin{array}{c} 1 \end{array}
\text{(A)}"""


def test_golds_that_only_their_text_matches():
    assert [gold for gold in ONLY_AS_TEXT if not only_as_text(gold)] == []
    assert [gold for gold in re.split("\n| ;; ", NOT_ONLY) if only_as_text(gold)] == []
